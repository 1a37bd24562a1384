//! Quota maths: GCRA for rolling windows, UTC calendar windows. Pure; time is a parameter.
