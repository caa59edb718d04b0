//! Greedy decoding of an artifact, with the sparse kernels: token ids in, token ids out.
//!
//!   generate MODEL.onnx LIBRARY COUNT ID...
//!
//! LIBRARY is lib/PLATFORM/FILE next to MODEL.onnx. Cargo.toml: ort = "=2.0.0-rc.12"
use std::collections::HashMap;

use ort::memory::Allocator;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Tensor, TensorElementType, ValueType};

const PAST: &str = "past_key_values.";

/// The KV caches before the first token: batch 1, length 0; floats, or bytes after --kv-cache i8 or i8-token.
fn empty_past(session: &Session) -> ort::Result<HashMap<String, DynValue>> {
    let mut past = HashMap::new();
    for input in session.inputs() {
        let ValueType::Tensor { ty, shape, .. } = input.dtype() else {
            continue;
        };
        if !input.name().starts_with(PAST) {
            continue;
        }
        let (memory, shape) = (Allocator::default(), [1, shape[1], 0, shape[3]]);
        let value = match ty {
            TensorElementType::Int8 => Tensor::<i8>::new(&memory, shape)?.into_dyn(),
            _ => Tensor::<f32>::new(&memory, shape)?.into_dyn(),
        };
        past.insert(input.name().to_string(), value);
    }
    Ok(past)
}

fn row(values: Vec<i64>) -> ort::Result<DynValue> {
    Ok(Tensor::from_array(([1, values.len() as i64], values))?.into_dyn())
}

/// The token with the highest of the last position's logits.
fn best_token(logits: &DynValue) -> ort::Result<i64> {
    let (shape, data) = logits.try_extract_tensor::<f32>()?;
    let last = &data[data.len() - shape[2] as usize..];
    let best = (0..last.len()).reduce(|best, i| if last[i] > last[best] { i } else { best });
    Ok(best.expect("a vocabulary") as i64)
}

fn decode(session: &mut Session, mut ids: Vec<i64>, count: usize) -> ort::Result<Vec<i64>> {
    let takes_positions = session.inputs().iter().any(|input| input.name() == "position_ids");
    let mut past = empty_past(session)?;
    let (mut tokens, mut length) = (Vec::new(), 0);
    while tokens.len() < count {
        let end = length + ids.len() as i64;
        let mut inputs: Vec<(String, SessionInputValue)> = Vec::new();
        if takes_positions {
            inputs.push(("position_ids".into(), row((length..end).collect())?.into()));
        }
        inputs.push(("input_ids".into(), row(ids)?.into()));
        inputs.push(("attention_mask".into(), row(vec![1; end as usize])?.into()));
        let names: Vec<String> = past.keys().cloned().collect();
        inputs.extend(past.drain().map(|(name, value)| (name, value.into())));
        let mut outputs = session.run(inputs)?;
        for name in names {
            let present = name.replace(PAST, "present.");
            past.insert(name, outputs.remove(present).expect("one present for each past"));
        }
        length = end;
        ids = vec![best_token(&outputs["logits"])?];
        tokens.push(ids[0]);
    }
    Ok(tokens)
}

fn main() -> ort::Result<()> {
    let words: Vec<String> = std::env::args().collect();
    if words.len() < 5 {
        eprintln!("usage: generate MODEL.onnx LIBRARY COUNT ID...");
        std::process::exit(2);
    }
    let number = |word: &String| word.parse::<i64>().expect("a whole number");
    let mut session = Session::builder()?
        .with_operator_library(&words[2])?
        .commit_from_file(&words[1])?;
    let tokens = decode(
        &mut session,
        words[4..].iter().map(number).collect(),
        number(&words[3]) as usize,
    )?;
    println!("{}", tokens.iter().map(i64::to_string).collect::<Vec<_>>().join(" "));
    Ok(())
}
