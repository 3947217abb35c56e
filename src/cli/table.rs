//! Lists for people (columns) and for programs (one JSON object a line).

use serde_json::Value;

use crate::admin::span;

/// Prints rows: as JSON one a line, else under headings, each cell made by `cell`.
pub fn show(
    rows: &[Value],
    as_json: bool,
    columns: &[&str],
    cell: impl Fn(&Value, &str) -> String,
) {
    if as_json {
        rows.iter().for_each(|row| println!("{row}"));
        return;
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| columns.iter().map(|c| printable(&cell(row, c))).collect())
        .collect();
    let width = |i: usize| {
        cells
            .iter()
            .map(|r| r[i].chars().count())
            .chain([columns[i].len()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let print = |line: Vec<String>| {
        let padded: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(c, w)| format!("{c:w$}"))
            .collect();
        println!("{}", padded.join("  ").trim_end());
    };
    print(columns.iter().map(|c| (*c).to_owned()).collect());
    cells.into_iter().for_each(print);
}

/// Prints one object: as JSON, else one member a line.
pub fn show_one(object: &Value, as_json: bool, members: &[(&str, String)]) {
    if as_json {
        println!("{object}");
        return;
    }
    let width = members
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0);
    for (name, value) in members {
        println!("{name:width$}  {}", printable(value));
    }
}

/// A member as text, `-` for none.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// Says what was done: a sentence, or the answer as it came.
pub fn say(answer: &Value, as_json: bool, sentence: &str) {
    if as_json {
        println!("{answer}");
    } else {
        println!("{}", printable(sentence));
    }
}

/// The rows of an answer that is a list.
pub fn rows(answer: Value) -> Vec<Value> {
    match answer {
        Value::Array(rows) => rows,
        _ => Vec::new(),
    }
}

/// Control characters of a stranger's text must not reach the terminal.
pub fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).collect()
}

/// A time as how far ahead it lies: `in 5 s`, `now`.
pub fn until(at_ms: &Value, now_ms: i64) -> String {
    match at_ms.as_i64() {
        None => "-".into(),
        Some(at) if at <= now_ms => "now".into(),
        Some(at) if at - now_ms < 1000 => "in 1 s".into(),
        Some(at) => format!("in {}", span(at - now_ms)),
    }
}

/// A time as how long ago it was: `5 s`.
pub fn age(at_ms: &Value, now_ms: i64) -> String {
    at_ms.as_i64().map_or("-".into(), |at| span(now_ms - at))
}

/// A time as RFC 3339, `-` for none.
pub fn time(at_ms: &Value) -> String {
    at_ms
        .as_i64()
        .and_then(|at| jiff::Timestamp::from_millisecond(at).ok())
        .map_or("-".into(), |at| format!("{at:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_said_from_now() {
        assert_eq!(until(&json!(null), 0), "-");
        assert_eq!(until(&json!(5), 5), "now");
        assert_eq!(until(&json!(90_000), 0), "in 1 min 30 s");
        assert_eq!(age(&json!(0), 61_000), "1 min 1 s");
        assert_eq!(time(&json!(0)), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_strangers_text_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a [2Jb c");
    }
}
