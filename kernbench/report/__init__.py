"""What a run looks like to people: tables in the terminal, a picture, and a folder that keeps everything."""
