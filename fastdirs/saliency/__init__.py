"""Saliency models: trained on synthesised masks, measured, exported and run over folders of pictures."""
