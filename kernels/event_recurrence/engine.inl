#include "../denormals.inl"
#include "../stream_step/vectors.inl"
#include "../event_attention/arithmetic.inl"
#include "recurrence.inl"
