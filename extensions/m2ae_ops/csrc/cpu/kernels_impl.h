// All vector kernels for one instruction set; see kernels.h for the rule about headers.
#pragma once

#include "attention_impl.h"
#include "ball_impl.h"
#include "buckets_impl.h"
#include "chamfer_impl.h"
#include "emd_impl.h"
#include "fps_impl.h"
#include "kernels.h"
#include "knn_impl.h"
#include "nearest_impl.h"
#include "pair_gradients_impl.h"
#include "patches_impl.h"
#include "rows_impl.h"
#include "scatter_impl.h"

namespace m2ae::M2AE_ISA {
namespace {

template <typename T>
constexpr Kernels<T> kTable{fps<T>, knn<T>, nearest<T>, three_nn<T>, ball_query<T>, patches<T>,
                            column_sums<T>, pair_gradients<T>, root_weights<T>,
                            lay_out<T>, knn_sorted<T>, nearest_sorted<T, 1>, nearest_sorted<T, 3>, ball_sorted<T>,
                            scatter_rows<T, T>, scatter_rows<T, Bfloat16>, dot_rows<T, T>, dot_rows<T, Bfloat16>,
                            emd<T>};

}  // namespace

template <> const Kernels<float>& table<Kernels<float>>() { return kTable<float>; }
template <> const Kernels<double>& table<Kernels<double>>() { return kTable<double>; }

}  // namespace m2ae::M2AE_ISA
