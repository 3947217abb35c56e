use crate::identity::{KeyError, Proof, PublicKey};
use bytes::Bytes;
pub mod encoding {
    pub fn encode(_b: &[u8]) -> String {
        todo!()
    }
    pub fn decode(_s: &str) -> Option<Vec<u8>> {
        todo!()
    }
    pub fn decode_key(_s: &str) -> Option<[u8; 32]> {
        todo!()
    }
}
pub mod address {
    pub struct Address;
    impl Address {
        pub fn parse(_s: &str) -> Result<Self, ()> {
            todo!()
        }
        pub fn domain(&self) -> &str {
            todo!()
        }
    }
    impl std::fmt::Display for Address {
        fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            todo!()
        }
    }
}
pub mod envelope {
    use super::*;
    #[derive(Debug, thiserror::Error)]
    #[error("x")]
    pub struct E;
    impl E {
        pub fn code(&self) -> &'static str {
            todo!()
        }
    }
    pub struct Envelope;
    impl Envelope {
        pub fn outbound(_b: &Bytes) -> Result<Self, E> {
            todo!()
        }
        pub fn from(&self) -> &str {
            todo!()
        }
        pub fn to(&self) -> &str {
            todo!()
        }
        pub fn message_id(&self) -> &str {
            todo!()
        }
    }
}
pub mod relay {
    use super::*;
    pub struct Outgoing {
        pub signed: Vec<u8>,
        pub body: Bytes,
    }
    impl Outgoing {
        pub fn new(
            _e: &Bytes,
            _d: &str,
            _n: i64,
            _nonce: Option<&str>,
        ) -> Result<Self, super::envelope::E> {
            todo!()
        }
    }
    pub struct RelayRequest;
    impl RelayRequest {
        pub fn parse(_b: &Bytes) -> Result<Self, super::envelope::E> {
            todo!()
        }
        pub fn from_relay(&self) -> &str {
            todo!()
        }
        pub fn message_id(&self) -> &str {
            todo!()
        }
        pub fn from(&self) -> &str {
            todo!()
        }
        pub fn event_type(&self) -> &str {
            todo!()
        }
        pub fn nonce(&self) -> Option<&str> {
            todo!()
        }
        pub fn signed_bytes(&self) -> Vec<u8> {
            todo!()
        }
        pub fn sender_key(&self) -> Option<&str> {
            todo!()
        }
        pub fn verify_agent(&self, _k: &PublicKey) -> Result<Proof, KeyError> {
            todo!()
        }
        pub fn envelope_text(&self) -> Bytes {
            todo!()
        }
        pub fn hop_count(&self) -> i64 {
            todo!()
        }
    }
}
pub mod checks {
    use super::super::answer::Fail;
    use super::relay::RelayRequest;
    pub struct Limits<'a> {
        pub now_ms: i64,
        pub max_age_ms: i64,
        pub max_hops: i64,
        pub domain: &'a str,
    }
    pub struct Fault {
        pub charged: bool,
        pub reason: &'static str,
        pub fail: Fail,
    }
    pub fn envelope(_r: &RelayRequest) -> Result<(), Fault> {
        todo!()
    }
    pub fn request(_r: &RelayRequest, _l: &Limits<'_>) -> Result<(), Fault> {
        todo!()
    }
}
