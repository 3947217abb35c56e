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
        .args(["tree", "--locked", "--offline", "--edges", "features"])
        .args(["--invert", "serde_json", "--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{why}");
    let tree = String::from_utf8_lossy(&output.stdout);
    let on = |feature: &str| tree.contains(&format!("serde_json feature \"{feature}\""));
    assert!(on("std"), "features are listed: {tree}");
    for feature in ["preserve_order", "float_roundtrip", "arbitrary_precision"] {
        assert!(!on(feature), "{feature}: {tree}");
    }
}
