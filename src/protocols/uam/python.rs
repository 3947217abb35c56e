//! Text as Python shows it in messages: the reference's details quote values by `repr`.

use super::json::Json;

/// `repr` of a string.
pub fn repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == quote => {
                out.push('\\');
                out.push(c);
            }
            _ if printable(c) => out.push(c),
            _ => {
                let code = u32::from(c);
                out.push_str(&match code {
                    0..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                });
            }
        }
    }
    out.push(quote);
    out
}

/// `repr` of a list of strings.
pub fn repr_list<S: AsRef<str>>(items: &[S]) -> String {
    let shown: Vec<String> = items.iter().map(|s| repr(s.as_ref())).collect();
    format!("[{}]", shown.join(", "))
}

/// The name of the type that a value has in Python.
pub(super) fn type_name(value: &Json) -> &'static str {
    match value {
        Json::Null => "NoneType",
        Json::Bool(_) => "bool",
        Json::Number(text) if text.contains(['.', 'e', 'E']) => "float",
        Json::Number(_) => "int",
        Json::String(_) => "str",
        Json::Array(_) => "list",
        Json::Object(_) => "dict",
    }
}

/// Python escapes control, format, private and unassigned characters and every space but U+0020.
fn printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        '\u{300}'..='\u{36f}' => true,
        '\u{ad}' => false,
        _ if c.is_control() || c.is_whitespace() => false,
        _ => !c.escape_debug().to_string().starts_with("\\u"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_as_python_does() {
        for (text, shown) in [
            ("a", "'a'"),
            ("it's", "\"it's\""),
            ("it's \"x\"", r#"'it\'s "x"'"#),
            ("\n\t\\", r"'\n\t\\'"),
            ("\u{0}\u{7f}\u{a0}\u{ad}", r"'\x00\x7f\xa0\xad'"),
            ("\u{2028}\u{feff}", r"'\u2028\ufeff'"),
            ("é世😀e\u{301}", "'é世😀e\u{301}'"),
        ] {
            assert_eq!(repr(text), shown);
        }
        assert_eq!(repr_list(&["alpha.test", "b"]), "['alpha.test', 'b']");
        assert_eq!(repr_list::<&str>(&[]), "[]");
    }
}
