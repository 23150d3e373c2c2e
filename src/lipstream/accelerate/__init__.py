"""What makes a loaded model faster: one file a technique, applied once, where the model is loaded."""
