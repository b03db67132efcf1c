"""The networks that SD3 compares the MMDiT with (figure 4), behind one interface: see ``registry``."""
