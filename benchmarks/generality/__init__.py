"""What repairs reach beyond their edits, against what they lose: minimal norm, fine-tuning and GRACE."""
