//! What operators' programs ask, under any bytes ([`crate::fuzzing`]).

use super::params::{Params, encode};
use super::{body, end, keys, lanes, peer_name, select, trust};
use crate::fuzzing::NOW;

/// A query, and the same bytes as a body.
pub fn request(data: &[u8]) {
    bodies(data);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = peer_name(text);
    let _ = end::at(Some(text), None, NOW);
    let _ = end::at(None, Some(text), NOW);
    let given = format!("msg_id={}", encode(text));
    let read = Params::read(Some(&given)).map(|mut params| params.text("msg_id"));
    let wanted = Some(text.to_owned()).filter(|text| !text.is_empty());
    assert!(read.is_ok_and(|read| read == wanted));
    if let Ok(mut params) = Params::read(Some(text))
        && let Ok(filter) = select::list(&mut params, &[], NOW)
    {
        select::is_narrow(&filter);
        assert!((1..=1000).contains(&filter.limit));
    }
}

/// The bodies of every route.
fn bodies(data: &[u8]) {
    let _ = body::<keys::Turn>(data);
    let _ = body::<lanes::Pause>(data);
    let _ = body::<trust::NewRule>(data);
    let _ = body::<trust::Release>(data);
}
