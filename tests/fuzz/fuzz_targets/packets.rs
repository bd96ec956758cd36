//! Any bytes as what a client sends of a directory: packets, each after its length in one byte, received over an older copy.
//! Nothing leaves the directory, and nothing is received for whole that was cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use session::transfer::{Incoming, Limits, Previous, Receiver};
use session::wire::fsutil::Packet;
use std::sync::Arc;

struct Script<'a>(&'a [u8]);

impl Incoming for Script<'_> {
    fn next(&mut self) -> Option<Result<Packet, String>> {
        let (length, rest) = self.0.split_first()?;
        let (packet, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        self.0 = rest;
        Some(Packet::decode(packet).map_err(|error| error.to_string()))
    }

    fn send(&mut self, _: Packet) -> bool {
        true
    }
}

fuzz_target!(|bytes: &[u8]| {
    let place = tempfile::tempdir().expect("a folder");
    std::fs::write(place.path().join("canary"), b"sings").expect("written");
    let at = |name: &str| place.path().join("in").join(name);
    std::fs::create_dir(place.path().join("in")).expect("made");
    let receive = |number: u8, script: &[u8], previous: Option<&Previous>| {
        let receiver = Receiver {
            tree: &at(&format!("{number}-tree")),
            index: &at(&format!("{number}-index")),
            previous,
            asks_for_all: false,
            limits: Limits {
                entries: 100,
                bytes: 1 << 16,
            },
            meter: Arc::new(|_| {}),
        };
        receiver.run(&mut Script(script))
    };
    let (first, second) = bytes.split_at(bytes.len() / 2);
    if receive(1, first, None).is_ok() {
        let previous = Previous {
            tree: at("1-tree"),
            index: at("1-index"),
        };
        let _ = receive(2, second, Some(&previous));
    }
    let outside: Vec<_> = std::fs::read_dir(place.path()).expect("there").collect();
    assert_eq!(outside.len(), 2, "something lies beside the directory");
    assert_eq!(std::fs::read(place.path().join("canary")).expect("there"), b"sings");
});
