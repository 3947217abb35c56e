//! Every seed through every target: the texts of the vectors, and what fuzzers found.

use std::collections::BTreeSet;
use std::path::Path;

use super::{TARGETS, seeds};

#[test]
fn no_parser_falls_over_a_vector_of_any_protocol_or_over_what_was_found_before() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut inputs = BTreeSet::new();
    for vectors in ["uam", "voltchat", "paracord"] {
        let file = root.join(format!("tests/vectors/{vectors}.json"));
        let text = std::fs::read(file).unwrap();
        seeds(&serde_json::from_slice(&text).unwrap(), &mut inputs);
    }
    let found: Vec<_> = std::fs::read_dir(root.join("fuzz/found"))
        .unwrap()
        .map(|file| std::fs::read(file.unwrap().path()).unwrap())
        .collect();
    assert!(inputs.len() > 1_000, "only {} seeds", inputs.len());
    // All of them take a quarter of a minute: a part, and what was found whole.
    let every = 7;
    for (name, target) in TARGETS {
        for input in inputs.iter().step_by(every).chain(&found) {
            let ended = std::panic::catch_unwind(|| target(input));
            let shown = || String::from_utf8_lossy(input).into_owned();
            assert!(ended.is_ok(), "{name} falls over {:?}", shown());
        }
    }
}
