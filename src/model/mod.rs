//! The vocabulary of the product.
pub mod side;
