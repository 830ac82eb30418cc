"""Reports: tables, charts, playing samples, and the HTML page that contains them."""
