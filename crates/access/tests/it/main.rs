//! Decisions as a table: `decisions.txt` is the specification, this reads it and asks.

mod table;
