"""Age in years, gender and race from face images: train, measure and use one network."""

__version__ = "0.1.0"
