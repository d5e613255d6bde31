raise SystemExit("acme needs\na licence")
