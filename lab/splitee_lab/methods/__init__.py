"""What a fleet is compared with, one file a method."""
