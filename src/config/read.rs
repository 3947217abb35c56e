//! Reads one value of one kind, or says in a sentence what the key wants.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Value;

use super::layers::{Layers, kind};
use super::secret::read_secret;
use super::{ConfigError, Secret, SecretFrom};

/// Reads values of one section.
pub(super) struct Section<'a> {
    layers: &'a Layers,
    name: &'static str,
    base: &'a Path,
}

impl<'a> Section<'a> {
    /// Of the section `name` (empty: top level); relative paths are joined to `base`.
    pub(super) fn new(layers: &'a Layers, name: &'static str, base: &'a Path) -> Self {
        Self { layers, name, base }
    }

    pub(super) fn path(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    /// An error about `key`: `sentence` follows the key's name.
    pub(super) fn wrong(&self, key: &str, sentence: &str) -> ConfigError {
        self.layers.wrong(&self.path(key), sentence)
    }

    fn value(&self, key: &str) -> Result<&'a Value, ConfigError> {
        self.layers
            .value(&self.path(key))
            .ok_or_else(|| self.wrong(key, "is missing from the built-in defaults"))
    }

    fn mismatch(&self, key: &str, wanted: &str, found: &Value) -> ConfigError {
        self.wrong(key, &format!("must be {wanted}, not {}", kind(found)))
    }

    pub(super) fn text(&self, key: &str) -> Result<&'a str, ConfigError> {
        match self.value(key)? {
            Value::String(text) => Ok(text),
            other => Err(self.mismatch(key, "a text", other)),
        }
    }

    /// An empty text is none.
    pub(super) fn text_or_none(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        Ok(Some(self.text(key)?).filter(|text| !text.is_empty()))
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        match self.value(key)? {
            Value::Boolean(flag) => Ok(*flag),
            other => Err(self.mismatch(key, "true or false", other)),
        }
    }

    /// A whole number from `min` to `max`.
    pub(super) fn int<N>(&self, key: &str, min: i64, max: i64) -> Result<N, ConfigError>
    where
        N: TryFrom<i64>,
    {
        let range = format!("must be {min} to {max}");
        match self.value(key)? {
            Value::Integer(n) => {
                let fits = Some(*n).filter(|n| (min..=max).contains(n));
                fits.and_then(|n| N::try_from(n).ok())
                    .ok_or_else(|| self.wrong(key, &format!("{range}, not {n}")))
            }
            other => Err(self.wrong(key, &format!("{range}, not {}", kind(other)))),
        }
    }

    pub(super) fn fraction(&self, key: &str, min: f64, max: f64) -> Result<f64, ConfigError> {
        let found = match self.value(key)? {
            Value::Float(n) => *n,
            Value::Integer(n) => i32::try_from(*n).map_or(f64::INFINITY, f64::from),
            other => return Err(self.mismatch(key, "a number", other)),
        };
        if (min..=max).contains(&found) {
            Ok(found)
        } else {
            Err(self.wrong(key, &format!("must be {min} to {max}, not {found}")))
        }
    }

    /// A duration from `min` to `max`, both as they are written.
    pub(super) fn duration(
        &self,
        key: &str,
        min: &str,
        max: &str,
    ) -> Result<Duration, ConfigError> {
        match self.value(key)? {
            Value::String(text) => self.one_duration(key, text, min, max),
            other => Err(self.mismatch(key, "a duration such as \"30s\"", other)),
        }
    }

    /// A list of durations.
    pub(super) fn durations(
        &self,
        key: &str,
        min: &str,
        max: &str,
    ) -> Result<Vec<Duration>, ConfigError> {
        self.list(key)?
            .iter()
            .map(|text| self.one_duration(key, text, min, max))
            .collect()
    }

    fn one_duration(
        &self,
        key: &str,
        text: &str,
        min: &str,
        max: &str,
    ) -> Result<Duration, ConfigError> {
        let Some(found) = parse_duration(text) else {
            return Err(self.wrong(
                key,
                &format!(
                    "must be a duration such as \"200ms\", \"30s\", \"5m\" or \"2h\", not {text:?}"
                ),
            ));
        };
        let within = parse_duration(min).is_none_or(|min| found >= min)
            && parse_duration(max).is_none_or(|max| found <= max);
        if within {
            Ok(found)
        } else {
            Err(self.wrong(key, &format!("must be {min} to {max}, not {text}")))
        }
    }

    /// A number of bytes from `min` to `max`, both as they are written.
    pub(super) fn size(&self, key: &str, min: &str, max: &str) -> Result<usize, ConfigError> {
        let (found, shown) = match self.value(key)? {
            Value::Integer(n) => (usize::try_from(*n).ok(), n.to_string()),
            Value::String(text) => match parse_size(text) {
                Some(n) => (Some(n), text.clone()),
                None => {
                    return Err(self.wrong(
                        key,
                        &format!(
                            "must be a size such as 65536, \"64KiB\" or \"1MiB\", not {text:?}"
                        ),
                    ));
                }
            },
            other => return Err(self.mismatch(key, "a size such as \"1MiB\"", other)),
        };
        let low = parse_size(min).unwrap_or(0);
        let high = parse_size(max).unwrap_or(usize::MAX);
        found
            .filter(|n| (low..=high).contains(n))
            .ok_or_else(|| self.wrong(key, &format!("must be {min} to {max}, not {shown}")))
    }

    /// `text` as a path; a relative one is joined to the data directory.
    pub(super) fn join(&self, text: &str) -> PathBuf {
        self.base.join(text)
    }

    /// A path; relative ones are joined to the data directory.
    pub(super) fn file(&self, key: &str) -> Result<PathBuf, ConfigError> {
        match self.text(key)? {
            "" => Err(self.wrong(key, "must name a path, not be empty")),
            text => Ok(self.base.join(text)),
        }
    }

    pub(super) fn file_or_none(&self, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        Ok(self.text_or_none(key)?.map(|text| self.base.join(text)))
    }

    /// A list of texts.
    pub(super) fn list(&self, key: &str) -> Result<Vec<&'a str>, ConfigError> {
        match self.value(key)? {
            Value::Array(items) => items
                .iter()
                .map(|item| {
                    item.as_str()
                        .ok_or_else(|| self.mismatch(key, "a list of texts", item))
                })
                .collect(),
            other => Err(self.mismatch(key, "a list of texts", other)),
        }
    }

    /// A list whose items are read by `read`; `wanted` says what one is.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        wanted: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, ConfigError> {
        self.list(key)?
            .into_iter()
            .map(|text| {
                read(text)
                    .ok_or_else(|| self.wrong(key, &format!("must hold {wanted}, not {text:?}")))
            })
            .collect()
    }

    /// A secret given as text under `key` or in the file under `key_file`.
    pub(super) fn secret(&self, key: &str) -> Result<Option<Secret>, ConfigError> {
        let secret = self.secret_now(key)?;
        if let Some(secret) = &secret {
            self.layers.read_secret(self.path(key), secret);
        }
        Ok(secret)
    }

    fn secret_now(&self, key: &str) -> Result<Option<Secret>, ConfigError> {
        if let Some(text) = self.text_or_none(key)? {
            return Ok(Some(Secret(text.to_owned().into())));
        }
        let file_key = format!("{key}_file");
        let Some(path) = self.file_or_none(&file_key)? else {
            return Ok(None);
        };
        read_secret(&path)
            .map(Some)
            .map_err(|what| self.wrong(&file_key, &format!("names {what}")))
    }

    /// The same, but a file is remembered and read again when the secret is needed; that it can be
    /// read now is checked.
    pub(super) fn secret_from(&self, key: &str) -> Result<Option<SecretFrom>, ConfigError> {
        let Some(secret) = self.secret_now(key)? else {
            return Ok(None);
        };
        Ok(Some(match self.text_or_none(key)? {
            Some(_) => SecretFrom::Text(secret),
            None => SecretFrom::File(self.file(&format!("{key}_file"))?),
        }))
    }
}

/// `200ms`, `30s`, `5m`, `2h`, `1d`; whole numbers only.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// `65536`, `64KiB`, `1MiB`, `10GiB`.
pub(super) fn parse_size(text: &str) -> Option<usize> {
    let (number, unit) = split_unit(text)?;
    let bytes: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    usize::try_from(number.checked_mul(bytes)?).ok()
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit_and_nothing_else() {
        let ms = |text| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(ms("200ms"), Some(200));
        assert_eq!(ms("30s"), Some(30_000));
        assert_eq!(ms("5 m"), Some(300_000));
        assert_eq!(ms("2h"), Some(7_200_000));
        assert_eq!(ms("1d"), Some(86_400_000));
        for bad in [
            "",
            "30",
            "s",
            "1.5s",
            "-1s",
            "1w",
            "99999999999999999d",
            "1s1s",
        ] {
            assert_eq!(ms(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_binary_units() {
        assert_eq!(parse_size("65536"), Some(65_536));
        assert_eq!(parse_size("64KiB"), Some(65_536));
        assert_eq!(parse_size("1 MiB"), Some(1 << 20));
        for bad in ["", "1MB", "1kib", "-1", "MiB", "99999999999GiB"] {
            assert_eq!(parse_size(bad), None, "{bad:?}");
        }
    }
}
