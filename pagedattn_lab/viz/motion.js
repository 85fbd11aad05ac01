// Motion between two frames.
