//! What travels between nodes: heads of requests and answers, Raft messages, configurations and their changes.
#![no_main]

use bytes::Bytes;
use prost::Message as _;
use protocol::raft::{Configuration, Message};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let head = Bytes::copy_from_slice(data);
    if let Ok(request) = client::wire::Request::decode(head.clone()) {
        let again = client::wire::Request::decode(Bytes::from(request.encode_to_vec()));
        assert_eq!(again.as_ref(), Ok(&request), "what was understood is said again");
    }
    let _ = client::wire::Answer::decode(head);
    if let Ok(message) = Message::decode(data) {
        let again = Message::decode(&message.encode()).expect("what was understood is said again");
        assert_eq!(again.encode(), message.encode());
        let _ = (message.kind(), message.term(), message.from(), message.to(), message.snapshot());
    }
    if let Ok(configuration) = Configuration::decode(data) {
        let again = Configuration::decode(&configuration.encode()).expect("what was understood is said again");
        assert_eq!(again, configuration);
        let _ = (configuration.members(), configuration.is_joint(), configuration.is_empty());
    }
});
