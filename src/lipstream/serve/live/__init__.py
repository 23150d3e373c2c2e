"""The live page: a prepared face in the browser that says what is typed, recorded or spoken. Extra `live`."""
