//! Any bytes as a definition: refused, or a graph whose keys can be worked out and that is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llb::Definition;
use llb::cache::op_key;
use oci::Platform;

fuzz_target!(|bytes: &[u8]| {
    let Ok(definition) = Definition::from_bytes(bytes) else {
        return;
    };
    assert_eq!(
        Definition::from_proto(definition.to_proto()).expect("read before"),
        definition
    );
    let Ok(graph) = definition.to_graph() else { return };
    let platform = Platform::new("linux", "amd64");
    for vertex in &graph.vertices {
        let _ = op_key(vertex, &platform);
        let again = llb::op_bytes(&vertex.inputs, &vertex.op, vertex.platform.as_ref());
        assert!(!again.is_empty());
    }
});
