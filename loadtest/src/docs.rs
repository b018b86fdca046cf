//! Content of the documents: the state that operations change, and the full
//! document built from it.

use std::fmt::Write as _;

use bson::raw::{CString, cstr};
use bson::{Bson, Document, RawArrayBuf, RawBson, RawDocumentBuf, doc};

use crate::key_fields::KeyFields;
use crate::keys::{Key, KeySpace, mix64};

/// Tokens kept in one own document.
pub(crate) const MAX_OWN_TOKENS: usize = 24;

/// The padding repeats after so many characters.
const PAD_BLOCK: usize = 128;

/// What can change in an own or preloaded document. Everything else follows
/// from the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DocState {
    /// Number of the unique value.
    pub(crate) email: u64,
    /// Counter of multi-updates.
    pub(crate) m: i64,
    /// Counter of `$inc`.
    pub(crate) rev: i64,
    /// Pushed tokens, in order.
    pub(crate) toks: Vec<i64>,
    /// Version of the value; decides `val` and `pad`.
    pub(crate) ver: i64,
}

impl DocState {
    pub(crate) fn new(email: u64) -> Self {
        Self { email, m: 0, rev: 0, toks: Vec::new(), ver: 0 }
    }
}

/// Builds documents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Builder {
    pub(crate) space: KeySpace,
    pub(crate) pad: usize,
    pub(crate) key_fields: KeyFields,
}

impl Builder {
    pub(crate) fn new(space: KeySpace, document_size: usize, key_fields: KeyFields) -> Self {
        Self { space, pad: document_size.saturating_sub(260), key_fields }
    }

    /// The filter that names one document, and the fields that it begins with.
    pub(crate) fn name(&self, key: Key) -> Document {
        let id = self.space.id(key);
        let fields = self.key_fields.of(&id);
        let mut name = doc! { "_id": id };
        name.extend(fields);
        name
    }

    /// The state in which `Load::prepare` leaves a preloaded document.
    pub(crate) fn history(n: u32) -> DocState {
        DocState::new((1 << 60) | u64::from(n))
    }

    /// What names it, then all else in alphabetical order, as the server puts the fields of an upsert.
    pub(crate) fn build(&self, key: Key, state: &DocState) -> Document {
        let mut document = self.name(key);
        document.extend(self.content(key, state));
        document
    }

    /// The bytes of a preloaded document as `Load::prepare` leaves it; the same
    /// as `build` makes, several times faster.
    pub(crate) fn history_bytes(&self, n: u32) -> RawDocumentBuf {
        let key = Key::History(n);
        let mut raw = RawDocumentBuf::new();
        let id = self.space.id(key);
        let fields = self.key_fields.of(&id);
        raw.append(cstr!("_id"), RawBson::try_from(id).unwrap_or(RawBson::Null));
        for (name, value) in fields {
            if let (Ok(name), Ok(value)) = (CString::try_from(name), RawBson::try_from(value)) {
                raw.append(name, value);
            }
        }
        raw.append(cstr!("email"), self.space.email(Self::history(n).email));
        raw.append(cstr!("group"), self.space.group(key));
        raw.append(cstr!("key"), key.to_string());
        raw.append(cstr!("lt"), self.space.tag());
        raw.append(cstr!("m"), 0_i64);
        raw.append(cstr!("pad"), self.pad(key, 0));
        raw.append(cstr!("rev"), 0_i64);
        raw.append(cstr!("toks"), RawArrayBuf::new());
        raw.append(cstr!("val"), Self::val(key, 0));
        raw.append(cstr!("ver"), 0_i64);
        raw
    }

    /// All fields but `_id`: what a replacement names.
    pub(crate) fn fields(&self, key: Key, state: &DocState) -> Document {
        let mut fields = self.key_fields.of(&self.space.id(key));
        fields.extend(self.content(key, state));
        fields
    }

    /// All fields but those that name the document.
    pub(crate) fn content(&self, key: Key, state: &DocState) -> Document {
        doc! {
            "email": self.space.email(state.email),
            "group": self.space.group(key),
            "key": key.to_string(),
            "lt": self.space.tag(),
            "m": state.m,
            "pad": self.pad(key, state.ver),
            "rev": state.rev,
            "toks": state.toks.clone(),
            "val": Self::val(key, state.ver),
            "ver": state.ver,
        }
    }

    pub(crate) fn val(key: Key, ver: i64) -> String {
        format!("{key} version {ver}")
    }

    pub(crate) fn pad(&self, key: Key, ver: i64) -> String {
        let mut seed = self.space.hash(key) ^ mix64(ver.cast_unsigned());
        let mut block = String::with_capacity(PAD_BLOCK);
        while block.len() < PAD_BLOCK {
            seed = mix64(seed);
            let _ = write!(block, "{seed:016x}");
        }
        let mut text = block.repeat(self.pad.div_ceil(PAD_BLOCK));
        text.truncate(self.pad);
        text
    }

    /// A hot document as it is created.
    pub(crate) fn hot(&self, n: u16) -> Document {
        let key = Key::Hot(n);
        let mut document = self.name(key);
        document.extend(doc! {
            "c": 0_i64,
            "email": self.space.email((1 << 61) | u64::from(n)),
            "group": self.space.group(key),
            "key": key.to_string(),
            "lt": self.space.tag(),
            "n": 0_i64,
            "toks": Bson::Array(Vec::new()),
        });
        document
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_deterministic_and_of_the_asked_size() {
        let builder = Builder::new(KeySpace::new(3, true), 1000, KeyFields::default());
        let state = Builder::history(17);
        let one = builder.build(Key::History(17), &state);
        assert_eq!(one, builder.build(Key::History(17), &state));
        for n in 0..200 {
            let raw = builder.history_bytes(n);
            assert_eq!(
                raw.as_bytes(),
                builder.build(Key::History(n), &Builder::history(n)).to_vec().unwrap()
            );
        }
        let bytes = one.to_vec().unwrap().len();
        assert!((900..1100).contains(&bytes), "{bytes}");
        let names: Vec<_> = one.keys().skip(1).cloned().collect();
        assert!(names.is_sorted());
        assert_ne!(builder.pad(Key::History(17), 0), builder.pad(Key::History(17), 1));
    }

    #[test]
    fn every_document_begins_with_what_names_it() {
        let builder = Builder::new(KeySpace::new(3, true), 500, KeyFields::CustomerOrder);
        let own = Key::Own { worker: 2, n: 9 };
        let documents =
            [(Key::Hot(4), builder.hot(4)), (own, builder.build(own, &DocState::new(1)))].into_iter();
        for (key, document) in documents {
            let name = builder.name(key);
            assert_eq!(name.keys().collect::<Vec<_>>(), ["_id", "customer_id", "order_id"]);
            assert_eq!(document.into_iter().take(3).collect::<Document>(), name);
        }
        let fields = builder.fields(own, &DocState::new(1));
        assert_eq!(fields.keys().take(3).collect::<Vec<_>>(), ["customer_id", "order_id", "email"]);
        for n in 0..200 {
            let raw = builder.history_bytes(n);
            let built = builder.build(Key::History(n), &Builder::history(n));
            assert_eq!(raw.as_bytes(), built.to_vec().unwrap());
        }
    }
}
