// The square [0, 28]^2: one unit of length is one pixel of an MNIST image.
// Boundary tags as in Firedrake's RectangleMesh: 1 is x = 0, 2 is x = 28, 3 is y = 0, 4 is y = 28.
side = DefineNumber[28.0, Name "Parameters/side"];
size = DefineNumber[1.0, Name "Parameters/size"];

Point(1) = {0, 0, 0, size};
Point(2) = {side, 0, 0, size};
Point(3) = {side, side, 0, size};
Point(4) = {0, side, 0, size};

Line(1) = {4, 1};
Line(2) = {2, 3};
Line(3) = {1, 2};
Line(4) = {3, 4};

Curve Loop(1) = {3, 2, 4, 1};
Plane Surface(1) = {1};

Physical Curve("left", 1) = {1};
Physical Curve("right", 2) = {2};
Physical Curve("bottom", 3) = {3};
Physical Curve("top", 4) = {4};
Physical Surface("square", 5) = {1};

// Frontal-Delaunay: nearly equilateral triangles.
Mesh.Algorithm = 6;
