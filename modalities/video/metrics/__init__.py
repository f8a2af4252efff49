"""How good a set of clips is: features of video, motion, reconstruction, copies."""
