"""The figures of the report page: facts in, HTML with inline SVG out."""
