//! What a signature and a MAC prove, by others' vectors: those of Wycheproof, and the published edge
//! cases on which verifiers of Ed25519 disagree. All go through the functions that every protocol calls.

use drawbridge::identity::hmac::{self, SharedSecret};
use drawbridge::identity::{KeyError, PublicKey, unhex};
use wycheproof::{TestResult, eddsa, mac};

/// Whether the key reads and the signature holds.
fn holds(key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), KeyError> {
    let key: &[u8; 32] = key.try_into().map_err(|_| KeyError::BadKey)?;
    PublicKey::parse(key)?.verify(message, signature).map(drop)
}

#[test]
fn ed25519_signatures_are_taken_and_refused_as_wycheproof_says() {
    let set = eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap();
    let (mut taken, mut refused) = (0, 0);
    for group in set.test_groups {
        for case in group.tests {
            let held = holds(&group.key.pk, &case.msg, &case.sig);
            let id = case.tc_id;
            match case.result {
                TestResult::Valid => {
                    assert_eq!(held, Ok(()), "{id}: {}", case.comment);
                    taken += 1;
                }
                TestResult::Invalid => {
                    assert!(held.is_err(), "{id}: {}", case.comment);
                    refused += 1;
                }
                TestResult::Acceptable => panic!("{id}: Ed25519 has no case left open"),
            }
        }
    }
    assert!(taken >= 80 && refused >= 60, "{taken} and {refused}");
}

#[test]
fn hmac_sha256_tags_are_taken_and_refused_as_wycheproof_says_and_never_when_cut() {
    let set = mac::TestSet::load(mac::TestName::HmacSha256).unwrap();
    let (mut taken, mut refused, mut cut) = (0, 0, 0);
    for group in set.test_groups {
        for case in group.tests {
            let held = hmac::verify(&case.key, &case.msg, &case.tag).map(drop);
            let id = case.tc_id;
            if group.tag_size != 256 {
                // Half a tag may be right elsewhere. Here nobody sends one, so it proves nothing.
                assert_eq!(held, Err(KeyError::BadMac), "{id}: {}", case.comment);
                cut += 1;
            } else if case.result == TestResult::Valid {
                assert_eq!(held, Ok(()), "{id}: {}", case.comment);
                taken += 1;
            } else {
                assert_eq!(held, Err(KeyError::Mismatch), "{id}: {}", case.comment);
                refused += 1;
            }
        }
    }
    assert!(
        taken >= 30 && refused >= 50 && cut >= 80,
        "{taken}, {refused}, {cut}"
    );
}

#[test]
fn a_shared_secret_is_that_hmac_under_its_text() {
    // RFC 4231, case 2, its key doubled to the shortest secret there is; computed with OpenSSL.
    let secret = SharedSecret::new("JefeJefeJefeJefe").unwrap();
    let text = b"what do ya want for nothing?";
    let mac = secret.mac(text);
    assert!(hmac::verify(b"JefeJefeJefeJefe", text, &mac).is_ok());
    assert!(secret.verify(text, &mac).is_ok());
}

/// The answer a case must get.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    Holds,
    Key(KeyError),
    Signature,
}

/// The twelve cases of "Taming the many EdDSAs" (Chalkias, Garillot, Nikolaenko, 2020): message, key,
/// signature, and what we answer. A key of small order is none; an R of small order, an S not below
/// the group's order and an equation that holds only times the cofactor prove nothing. What is left,
/// points of mixed order for which the plain equation holds (3), is valid by every reading.
const SPECCHECK: [(&str, &str, &str, Answer); 12] = [
    // 0: S = 0, A and R of small order.
    (
        "8c93255d71dcab10e8f379c26200f3c7bd5f09d9bc3068d3ef4edeb4853022b6",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a0000000000000000000000000000000000000000000000000000000000000000",
        Answer::Key(KeyError::SmallOrder),
    ),
    // 1: A of small order, R of mixed order.
    (
        "9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43a5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
        Answer::Key(KeyError::SmallOrder),
    ),
    // 2: A of mixed order, R of small order.
    (
        "aebf3f2601a0c8c5d39cc7d8911642f740b78168218da8471772b35f9d35b9ab",
        "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa8c4bd45aecaca5b24fb97bc10ac27ac8751a7dfe1baff8b953ec9f5833ca260e",
        Answer::Signature,
    ),
    // 3: both of mixed order; the equation holds as it stands.
    (
        "9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79",
        "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
        "9046a64750444938de19f227bb80485e92b83fdb4b6506c160484c016cc1852f87909e14428a7a1d62e9f22f3d3ad7802db02eb2e688b6c52fcd6648a98bd009",
        Answer::Holds,
    ),
    // 4: the equation holds only times the cofactor.
    (
        "e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c",
        "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
        "160a1cb0dc9c0258cd0a7d23e94d8fa878bcb1925f2c64246b2dee1796bed5125ec6bc982a269b723e0668e540911a9a6a58921d6925e434ab10aa7940551a09",
        Answer::Signature,
    ),
    // 5: the same, unless the hash is reduced first.
    (
        "e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c",
        "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
        "21122a84e0b5fca4052f5b1235c80a537878b38f3142356b2c2384ebad4668b7e40bc836dac0f71076f9abe3a53f9c03c1ceeeddb658d0030494ace586687405",
        Answer::Signature,
    ),
    // 6: S above the group's order.
    (
        "85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40",
        "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623",
        "e96f66be976d82e60150baecff9906684aebb1ef181f67a7189ac78ea23b6c0e547f7690a0e2ddcd04d87dbc3490dc19b3b3052f7ff0538cb68afb369ba3a514",
        Answer::Signature,
    ),
    // 7: S far above it.
    (
        "85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40",
        "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623",
        "8ce5b96c8f26d0ab6c47958c9e68b937104cd36e13c33566acd2fe8d38aa19427e71f98a473474f2f13f06f97c20d58cc3f54b8bd0d272f42b695dd7e89a8c22",
        Answer::Signature,
    ),
    // 8 and 9: R of small order in a form that is not canonical.
    (
        "9bedc267423725d473888631ebf45988bad3db83851ee85c85e241a07d148b41",
        "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff03be9678ac102edcd92b0210bb34d7428d12ffc5df5f37e359941266a4e35f0f",
        Answer::Signature,
    ),
    (
        "9bedc267423725d473888631ebf45988bad3db83851ee85c85e241a07d148b41",
        "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffca8c5b64cd208982aa38d4936621a4775aa233aa0505711d8fdcfdaa943d4908",
        Answer::Signature,
    ),
    // 10 and 11: A of small order in a form that is not canonical.
    (
        "e96b7021eb39c1a163b6da4e3093dcd3f21387da4cc4572be588fafae23c155b",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dca5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
        Answer::Key(KeyError::SmallOrder),
    ),
    (
        "39a591f5321bbe07fd5a23dc2f39d025d74526615746727ceefd6e82ae65c06f",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dca5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
        Answer::Key(KeyError::SmallOrder),
    ),
];

#[test]
fn of_the_twelve_cases_that_divide_verifiers_only_the_sound_one_holds() {
    for (n, (message, key, signature, wanted)) in SPECCHECK.into_iter().enumerate() {
        let message = unhex::<32>(message).unwrap();
        let signature = unhex::<64>(signature).unwrap();
        let got = match PublicKey::parse(&unhex::<32>(key).unwrap()) {
            Err(error) => Answer::Key(error),
            Ok(key) => match key.verify(&message, &signature) {
                Ok(_) => Answer::Holds,
                Err(error) => {
                    assert_eq!(error, KeyError::Mismatch, "case {n}");
                    Answer::Signature
                }
            },
        };
        assert_eq!(got, wanted, "case {n}");
    }
}

#[test]
fn no_point_of_small_order_is_a_key_in_any_of_its_spellings() {
    // Eight points, six of them written a second way or more.
    let zeros = |first: u8, last: u8| {
        let mut bytes = [0u8; 32];
        (bytes[0], bytes[31]) = (first, last);
        bytes
    };
    let ones = |first: u8, last: u8| {
        let mut bytes = [0xffu8; 32];
        (bytes[0], bytes[31]) = (first, last);
        bytes
    };
    let mut spellings = vec![
        zeros(0, 0),
        zeros(0, 0x80),
        zeros(1, 0),
        zeros(1, 0x80),
        ones(0xec, 0x7f),
        ones(0xec, 0xff),
        ones(0xed, 0x7f),
        ones(0xed, 0xff),
        ones(0xee, 0x7f),
        ones(0xee, 0xff),
    ];
    for eighth in [
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    ] {
        let mut point: [u8; 32] = unhex(eighth).unwrap();
        spellings.push(point);
        point[31] ^= 0x80;
        spellings.push(point);
    }
    assert_eq!(spellings.len(), 14);
    for point in spellings {
        let refused = PublicKey::parse(&point).unwrap_err();
        assert!(
            matches!(refused, KeyError::SmallOrder | KeyError::BadKey),
            "{point:02x?}: {refused}"
        );
    }
}
