//! Summaries of journal volumes: their lines, however they are cut, and their blocks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| store::fuzzing::summary(data));
