//! Request line and headers: what a proxy in front may have done to them.
//!
//! UAM signs values of the body only. So a rewritten `Host` or path breaks no signature; it leads the
//! request to the wrong place, and who looks for a bad signature should know that it is not this.

use bytes::Bytes;

use super::super::discover::DELIVER_PATH;
use super::super::relay_request::is_json_content_type;
use super::super::verify::Rejection;
use super::input::{self, Head};
use super::{Context, Findings};

/// Request line and headers; answers the body as a server reads it.
pub(super) fn check(report: &mut Findings, context: &Context, head: &Head, body: Bytes) -> Bytes {
    match route(&head.method, &head.target) {
        Ok(()) => report.pass("route", format!("POST {DELIVER_PATH}")),
        Err(why) => report.fail("route", why),
    }
    if let Some(original) = ["x-forwarded-uri", "x-original-uri", "x-forwarded-prefix"]
        .into_iter()
        .find_map(|name| head.one(name).map(|value| format!("{name}: {value}")))
    {
        report.info(
            "route",
            format!("a proxy says what it was before: {original}"),
        );
    }
    host(report, context, head);
    match head.one("content-type") {
        Some(kind) if is_json_content_type(kind) => report.pass("content type", kind),
        other => {
            report.info("content type", format!("{:?}", other.unwrap_or("missing")));
            report.refuse("content type", &Rejection::content_type());
        }
    }
    if let Some(encoding) = head.one("content-encoding") {
        report.fail(
            "content encoding",
            format!("{encoding}: bodies are read as they are, never unpacked"),
        );
    }
    let body = match head.one("transfer-encoding") {
        Some(coding) if coding.eq_ignore_ascii_case("chunked") => {
            if let Some(whole) = input::dechunk(&body) {
                report.info("body", format!("sent in chunks; {} bytes", whole.len()));
                whole
            } else {
                report.info("body", "said to be chunked, but saved without its chunks");
                body
            }
        }
        _ => body,
    };
    match head.one("content-length").map(str::parse::<usize>) {
        None => body,
        Some(Ok(length)) if length == body.len() => {
            report.pass("content length", format!("{length} bytes"));
            body
        }
        Some(Ok(length)) if length < body.len() => {
            let rest = body.get(length..).unwrap_or_default();
            if rest.trim_ascii().is_empty() {
                report.pass(
                    "content length",
                    format!("{length} bytes, and a line end added by whatever saved the file"),
                );
            } else {
                report.fail(
                    "content length",
                    format!(
                        "{length} bytes are announced, the file holds {}",
                        body.len()
                    ),
                );
            }
            body.slice(..length)
        }
        Some(Ok(length)) => {
            report.fail(
                "content length",
                format!(
                    "{length} bytes are announced, the file holds {}: it was cut, or saved as text \
                     with its characters converted",
                    body.len()
                ),
            );
            body
        }
        Some(Err(_)) => {
            report.fail("content length", "is no number");
            body
        }
    }
}

/// Whether the request line is the delivery route's, or what was done to it.
fn route(method: &str, target: &str) -> Result<(), String> {
    let path = target.split('?').next().unwrap_or_default();
    let path = match path.split_once("://") {
        Some((_, rest)) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
        None => path,
    };
    if path == DELIVER_PATH {
        return match method {
            "POST" => Ok(()),
            _ => Err(format!(
                "{method} {path}: the route takes POST; a redirect on the way turns POST into GET"
            )),
        };
    }
    let unsigned = "The path is not signed, so the signature holds whatever it is";
    let shown: String = path.chars().take(200).collect();
    let plain = path.replace("//", "/");
    let plain = plain.trim_end_matches('/');
    Err(if plain == DELIVER_PATH {
        format!(
            "{shown} differs from {DELIVER_PATH} by slashes: a proxy in front adds them. {unsigned}"
        )
    } else if let Some(prefix) = plain.strip_suffix(DELIVER_PATH) {
        format!(
            "{shown} has {prefix:?} before {DELIVER_PATH}: a proxy in front must take it away (nginx: \
             end the proxy_pass URL with a slash), or the public URL (uam.http_url) must have it. \
             {unsigned}"
        )
    } else if !plain.is_empty() && DELIVER_PATH.ends_with(plain) {
        format!(
            "{shown} is what is left of {DELIVER_PATH} after a proxy in front took {:?} away (nginx: no \
             path in the proxy_pass URL). {unsigned}",
            DELIVER_PATH.strip_suffix(plain).unwrap_or_default()
        )
    } else {
        format!("{method} {shown} is not POST {DELIVER_PATH}. {unsigned}")
    })
}

/// What became of `Host` on the way. It is not signed, so nothing here fails the request.
fn host(report: &mut Findings, context: &Context, head: &Head) {
    let Some(said) = head.one("host") else {
        return;
    };
    let name = |text: &str| {
        let text = text.trim().to_ascii_lowercase();
        match text.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host.to_owned(),
            _ => text,
        }
    };
    let ours: Vec<&str> = [&context.public_host, &context.own_domain]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    let is_ours = |text: &str| ours.iter().any(|own| name(own) == name(text));
    if ours.is_empty() {
        report.info(
            "host",
            format!("{said} (not signed: a proxy may rewrite it)"),
        );
        return;
    }
    if is_ours(said) {
        report.pass("host", format!("{said}, as the sender addressed us"));
        return;
    }
    let ours = ours.join(" or ");
    let before = forwarded_host(head);
    report.info(
        "host",
        match before {
            Some(before) if is_ours(&before) => format!(
                "rewritten: the sender addressed {before}, a proxy in front made it {said} (nginx: \
                 `proxy_set_header Host $host;` keeps it, Apache: `ProxyPreserveHost On`). UAM does not \
                 sign it, so this is not why a signature fails"
            ),
            Some(before) => format!(
                "{said}, and {before} before a proxy in front rewrote it: neither is {ours}, so the \
                 sender found us under another name. UAM does not sign it, so this is not why a \
                 signature fails"
            ),
            None => format!(
                "rewritten, or another name: {said} is not {ours}. If a proxy in front did it, let it \
                 keep the name (nginx: `proxy_set_header Host $host;`). UAM does not sign it, so this \
                 is not why a signature fails; the body's envelope.to says who is meant"
            ),
        },
    );
}

/// The name that a proxy says was asked for.
fn forwarded_host(head: &Head) -> Option<String> {
    if let Some(host) = head.one("x-forwarded-host") {
        return host.split(',').next().map(|host| host.trim().to_owned());
    }
    let first = head.one("forwarded")?.split(',').next()?;
    first.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.trim()
            .eq_ignore_ascii_case("host")
            .then(|| value.trim().trim_matches('"').to_owned())
    })
}
