"""The demo: the whole loop on handwritten digits and a failing camera, in one terminal."""
