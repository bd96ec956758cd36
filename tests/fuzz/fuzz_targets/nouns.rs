//! Any bytes as the nouns of the OCI specs. What is accepted is printed and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci::{Digest, ImageConfig, Platform, Reference};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = ImageConfig::parse(bytes) {
        // Unknown numbers may lose digits, as in Go; what is known must not.
        let again = ImageConfig::parse(&config.to_json()).expect("written by us");
        assert_eq!(
            (again.config.env, again.history, again.rootfs),
            (config.config.env, config.history, config.rootfs)
        );
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(digest) = Digest::parse(text) {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(reference) = Reference::parse_normalized(text) {
        assert_eq!(
            Reference::parse_normalized(&reference.to_string()).expect("printed by us"),
            reference
        );
    }
    if let Ok(platform) = Platform::parse(text) {
        assert_eq!(
            Platform::parse(&platform.to_string()).expect("printed by us"),
            platform
        );
    }
});
