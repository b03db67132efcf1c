"""Tables in; laws, ELO, correlations, figures and one report out. Knows no model: any CSV or Parquet will do."""
