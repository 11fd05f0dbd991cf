//! Payloads of journal records: locators, volume lists, Raft bases and lists; identities.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| store::fuzzing::payloads(data));
