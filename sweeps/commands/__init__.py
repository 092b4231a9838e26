"""The commands of `stockpot`, one module a family. Heavy imports stand inside the functions."""
