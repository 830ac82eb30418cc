"""How results are shown: tables, charts, playing samples, and the HTML page that holds them."""
