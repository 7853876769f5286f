"""placeholder until the corpus sources land"""
