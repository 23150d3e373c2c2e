"""The service: jobs in a database, workers that do them, the HTTP interface and the page. Needs the extra `web`."""
