fn main() {
    #[cfg(feature = "torch")]
    println!("{:?} threads {}", tch::Tensor::from_slice(&[1f32]), tch::get_num_threads());
}
