def main_job(f): pass
