//! Writes `corpus/TARGET/` for every fuzzer: the texts of the test vectors, one a file.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut inputs = BTreeSet::new();
    for vectors in ["uam", "voltchat", "paracord"] {
        let text = fs::read(root.join(format!("../tests/vectors/{vectors}.json")))?;
        drawbridge::fuzzing::seeds(&serde_json::from_slice(&text)?, &mut inputs);
    }
    for found in fs::read_dir(root.join("found"))? {
        inputs.insert(fs::read(found?.path())?);
    }
    for (name, _) in drawbridge::fuzzing::TARGETS {
        let corpus = root.join("corpus").join(name);
        fs::create_dir_all(&corpus)?;
        for (n, input) in inputs.iter().enumerate() {
            fs::write(corpus.join(format!("seed-{n:05}")), input)?;
        }
    }
    println!("{} seeds for each of {} fuzzers", inputs.len(), drawbridge::fuzzing::TARGETS.len());
    Ok(())
}
