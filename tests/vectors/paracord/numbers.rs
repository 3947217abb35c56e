//! How numbers read and members are kept, on which the bytes of this protocol depend (sheet, 3).
//!
//! Features of a crate are switched on for everybody by anybody who wants them. Three of `serde_json`
//! would change what is signed; each of these tests fails if one of them comes in by any dependency.

use serde_json::Value;

fn written(text: &str) -> String {
    let value: Value = serde_json::from_str(text).expect("JSON");
    value.to_string()
}

#[test]
fn members_are_kept_sorted_so_preserve_order_is_off() {
    assert_eq!(
        written(r#"{"b":1,"a":{"d":1,"c":2}}"#),
        r#"{"a":{"c":2,"d":1},"b":1}"#
    );
    assert_eq!(
        written(r#"{"～":1,"👍":2,"é":3,"z":4}"#),
        r#"{"z":4,"é":3,"～":1,"👍":2}"#
    );
}

#[test]
fn a_float_is_read_as_the_reference_reads_it_so_float_roundtrip_is_off() {
    let exact: f64 = "1.0715660391465826e-75".parse().expect("a number");
    let read: Value = serde_json::from_str("1.0715660391465826e-75").expect("JSON");
    assert_ne!(read.as_f64(), Some(exact), "one unit off, as there");
}

#[test]
fn a_number_keeps_no_text_so_arbitrary_precision_is_off() {
    assert_eq!(written("18446744073709551616"), "1.8446744073709552e+19");
    assert_eq!(written("1.10"), "1.1");
}

#[test]
fn nobody_in_the_crate_graph_switches_these_features_on() {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .output()
        .expect("cargo runs");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{why}");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let nodes = metadata["resolve"]["nodes"].as_array().expect("a graph");
    let ours: Vec<&Value> = nodes
        .iter()
        .filter(|node| {
            let id = node["id"].as_str().unwrap_or_default();
            id.contains("serde_json@") || id.contains("#serde_json")
        })
        .collect();
    assert_eq!(ours.len(), 1, "one serde_json: {ours:?}");
    let features = ours[0]["features"].as_array().expect("features");
    for feature in ["preserve_order", "float_roundtrip", "arbitrary_precision"] {
        assert!(!features.contains(&feature.into()), "{features:?}");
    }
}
