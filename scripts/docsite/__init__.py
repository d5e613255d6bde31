"""The site: ``assemble`` gathers its sources, ``build`` has sphinx make it, the others each make one kind of page."""
