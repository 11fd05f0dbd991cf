//! What a node reads from its own files and from its peers: hard states, contacts, inventories.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| node::fuzzing::files(data));
