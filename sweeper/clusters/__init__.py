"""Where gangs run: `base` is the contract, `local` is one machine, `gang` holds what runs beside a trainer."""
