//! Operators: who may use the administrative routes, by bearer tokens of the configuration.

use ::http::{HeaderMap, StatusCode, header};

use super::VoltChat;
use super::answer::Fail;
use crate::config::{Operator, OperatorRole};
use crate::identity::hmac;

/// Wrong tokens one client address may show in a minute.
const WRONG_TOKENS: u32 = 20;

/// The operator of a request, if its role is enough. `client`: the window of its address.
pub fn authorise<'v>(
    v: &'v VoltChat,
    headers: &HeaderMap,
    client: Option<&str>,
    needed: OperatorRole,
) -> Result<&'v Operator, Fail> {
    let Some(given) = bearer(headers) else {
        return Err(Fail::new(StatusCode::UNAUTHORIZED, "Access token required"));
    };
    let window = client.map(|client| format!("voltchat/operator/{client}"));
    if let Some(window) = &window
        && v.trust.full(window, WRONG_TOKENS)
    {
        return Err(Fail::limited());
    }
    let Some(operator) = of_token(&v.config.operators, given) else {
        if let Some(window) = &window {
            v.trust.admit(window, WRONG_TOKENS);
        }
        return Err(Fail::new(StatusCode::FORBIDDEN, "Invalid or expired token"));
    };
    if operator.role < needed {
        return Err(Fail::new(
            StatusCode::FORBIDDEN,
            "Moderator access required",
        ));
    }
    Ok(operator)
}

/// What follows the first space, whatever stands before it, as there.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let token = value.split(|b| *b == b' ').nth(1)?;
    (!token.is_empty()).then_some(token)
}

/// Whose token it is. Every operator's is compared, each in a time that depends on neither text.
fn of_token<'o>(operators: &'o [Operator], given: &[u8]) -> Option<&'o Operator> {
    let mut found = None;
    for operator in operators {
        if hmac::same(given, operator.token.0.as_bytes()) {
            found = Some(operator);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn operators() -> Vec<Operator> {
        [
            ("ann", OperatorRole::Reader, "t-ann"),
            ("bo", OperatorRole::Admin, "t-bo"),
        ]
        .map(|(name, role, token)| Operator {
            name: name.to_owned(),
            role,
            token: Secret(token.to_owned().into()),
        })
        .into()
    }

    #[test]
    fn a_token_is_its_owners_byte_for_byte() {
        let all = operators();
        let who = |given: &[u8]| of_token(&all, given).map(|o| o.name.as_str());
        assert_eq!(who(b"t-ann"), Some("ann"));
        assert_eq!(who(b"t-bo"), Some("bo"));
        for wrong in [&b"t-b"[..], b"t-boo", b"T-BO", b""] {
            assert_eq!(who(wrong), None);
        }
        assert!(of_token(&[], b"").is_none());
    }

    #[test]
    fn a_bearer_is_the_second_word() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(of("Bearer x"), Some(b"x".to_vec()));
        assert_eq!(of("bearer x y"), Some(b"x".to_vec()));
        for none in ["Bearer", "Bearer ", ""] {
            assert_eq!(of(none), None);
        }
    }
}
