//! The key of a hashed index, which tells the chunk of a document.

use bson::{Bson, doc};
use md5::{Digest, Md5};

use super::failure::Failure;
use reshard::policy::order::{decimal, rank};

/// The hash of a value: the first half of the MD5 of a seed, the rank of its type and its bytes.
pub(super) fn hash(value: &Bson) -> Result<i64, Failure> {
    let mut digest = Md5::new();
    digest.update(0_i32.to_le_bytes());
    digest.update(rank(value).to_le_bytes());
    match value {
        // All numbers are hashed as whole ones, so that those that are equal have one hash.
        Bson::Int32(number) => digest.update(i64::from(*number).to_le_bytes()),
        Bson::Int64(number) => digest.update(number.to_le_bytes()),
        Bson::Double(number) => digest.update(truncated(*number).to_le_bytes()),
        Bson::Decimal128(number) => digest.update(truncated(decimal(number).round_ties_even()).to_le_bytes()),
        Bson::Document(_) | Bson::Array(_) => {
            return Err(Failure::bad_value("hashed shard key values of type object are not supported"));
        }
        other => {
            // Length, type and the empty name stand before the value, a NUL after it.
            let document = doc! {"": other.clone()}.to_vec()?;
            digest.update(document.get(6..document.len() - 1).unwrap_or_default());
        }
    }
    let digest = digest.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    Ok(i64::from_le_bytes(first))
}

/// Saturates, and takes 0 for what is no number.
#[expect(clippy::cast_possible_truncation, reason = "this is what is wanted")]
fn truncated(number: f64) -> i64 {
    number as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_equal_have_one_hash() {
        let of = |value: Bson| hash(&value).unwrap();
        // What `convertShardKeyToHashed` of a server says.
        assert_eq!(of(Bson::Int32(1)), 5_902_408_780_260_971_510);
        assert_eq!(of(Bson::Int64(1)), of(Bson::Double(1.9)));
        assert_eq!(of(Bson::Int64(1)), of(Bson::Decimal128("1.2".parse().unwrap())));
        assert_ne!(of(Bson::from("1")), of(Bson::Int32(1)));
    }
}
