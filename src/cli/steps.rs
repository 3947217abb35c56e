//! Steps of a diagnosis on the terminal.

use std::io::Write as _;

use crate::protocol::Step;

/// One step: a line with its mark, or one JSON object. A terminal that is gone is no reason to stop.
pub(super) fn print(step: &Step, as_json: bool) {
    let mut out = std::io::stdout().lock();
    if as_json {
        let _ = writeln!(out, "{}", serde_json::json!(step));
        return;
    }
    let mark = match step.ok {
        Some(true) => "ok  ",
        Some(false) => "FAIL",
        None => "    ",
    };
    let mut lines = step.detail.lines();
    let first = lines.next().unwrap_or_default();
    let _ = writeln!(out, "{mark} {:<24} {first}", step.name);
    for line in lines {
        let _ = writeln!(out, "{:29} {line}", "");
    }
    let _ = out.flush();
}
