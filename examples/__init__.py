"""What anodejobs is for, in programs of a page each: ``python -m examples.walkthrough`` first."""
