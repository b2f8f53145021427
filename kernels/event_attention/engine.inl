#include "../denormals.inl"
#include "arithmetic.inl"
#include "attention.inl"
