//! One document of figures, for a program or for a person.

use serde_json::Value;

use super::args::RunArgs;

/// Prints it: one line of JSON, or its members one a line. Members that end in `_bytes` are shown in MB.
pub fn print(run: &RunArgs, document: &Value) {
    if run.json {
        println!("{document}");
    } else {
        println!("{}", text(document));
    }
}

fn text(document: &Value) -> String {
    let Some(members) = document.as_object() else {
        return document.to_string();
    };
    let scenario = document["scenario"].as_str().unwrap_or_default();
    let mut lines = vec![scenario.to_owned()];
    let width = members.keys().map(String::len).max().unwrap_or_default();
    for (name, value) in members.iter().filter(|(name, _)| *name != "scenario") {
        let shown = match (value, name.ends_with("_bytes")) {
            (Value::Number(n), true) => {
                format!("{:.1} MB", n.as_f64().unwrap_or_default() / 1e6)
            }
            (Value::Null, _) => "not known".to_owned(),
            (Value::String(text), _) => text.clone(),
            _ => value.to_string(),
        };
        lines.push(format!("  {name:width$}  {shown}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_sees_the_scenario_first_and_bytes_as_megabytes() {
        let document =
            serde_json::json!({"rss_bytes": 12_345_678, "ratio": 0.5, "scenario": "idle"});
        assert_eq!(
            text(&document),
            "idle\n  ratio      0.5\n  rss_bytes  12.3 MB"
        );
    }
}
